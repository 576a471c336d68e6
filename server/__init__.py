"""The coordinator's side: rounds, aggregation, ledger. Imports sscxr, never the client or the simulation."""
