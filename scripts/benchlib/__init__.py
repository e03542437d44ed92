"""What the benchmark scripts share: servers to measure, load, statistics, and how results are shown."""
