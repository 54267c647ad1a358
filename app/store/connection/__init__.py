"""Connections to the store: clients, pools, clusters and scripts."""
