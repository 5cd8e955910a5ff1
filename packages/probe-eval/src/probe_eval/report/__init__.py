"""Records to figures and pages."""
