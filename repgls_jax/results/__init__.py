"""Results: metrics with patient-level intervals, tables, and the report page of a run."""
