"""What every route shares: bodies, replies, fairness, headers and the request log."""
