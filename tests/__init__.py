"""The tests mirror the package; `sim`, `faults` and `e2e` stand beside."""
