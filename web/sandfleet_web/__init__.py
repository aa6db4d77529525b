"""What people look at and hear from a fleet: `sandfleet-web notify` sends webhooks."""
