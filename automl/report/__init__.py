"""From run folders to tables, plots and pages; reads what runs left behind and computes nothing."""
