"""Plants small mistakes in the code, one at a time, and reports those that no test notices."""
