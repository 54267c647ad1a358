"""Who may call: keys, scopes and sessions, and the audit trail of what operators did."""
