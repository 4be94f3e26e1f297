"""The benchmarks, a file each: what it is, where its rows come from, a row of it, how it is asked and judged."""
