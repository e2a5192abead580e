"""Tracing: from a module to an IndexPlan, and from a plan back to slim networks."""
