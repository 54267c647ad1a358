"""What tests share. None of it imports the service: system tests use it too."""
