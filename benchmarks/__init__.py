"""Side-by-side measurements of speed and memory; never part of the test run."""
