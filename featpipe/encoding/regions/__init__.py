"""Regions of targets, each with an estimator of its own or a view of a common one."""
