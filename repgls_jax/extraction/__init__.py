"""Report files in, evidence.parquet out: sources, backends (rules, local language model, server), and the run.

This room has effects (files, processes, devices, network); what reads one report by rule, without any, is
:mod:`repgls_jax.reports`.
"""
