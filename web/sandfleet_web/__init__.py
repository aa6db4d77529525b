"""The pages and messages of a fleet for people: `sandfleet-web notify` sends webhooks."""
