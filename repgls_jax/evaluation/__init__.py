"""What an evaluation reads and writes: models, labelled splits, groups of patients, predictions and pages."""
