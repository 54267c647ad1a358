"""How the store is reached: clients, pools, clusters and scripts."""
