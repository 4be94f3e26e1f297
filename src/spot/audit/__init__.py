"""What is in the pairs: how much they change, how likely they are, and what was broken on the way (`spot audit`)."""
