"""What costs money: the ledger, what it has on record, and batches."""
