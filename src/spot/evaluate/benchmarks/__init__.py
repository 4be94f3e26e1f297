"""The benchmarks: what each is, where its rows come from, a row of it, how it is asked and judged."""
