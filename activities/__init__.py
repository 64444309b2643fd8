"""What touches the world: small, idempotent, heartbeating activities over ports."""
