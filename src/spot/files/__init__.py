"""Files: rows as JSONL and Parquet, the run directory, locks, and atomic writes."""
