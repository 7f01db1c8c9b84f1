"""Serving: requests through deployments, the choice between versions, roll-outs, and which models answer."""
