"""Jobs in and out: claims, leases, slots and what one worker asks of Redis. It knows no sandbox."""
