"""What evidence files say: seen in a report, compared with each other, calibrated on labels, and counted."""
