"""Draw every picture; nothing else imports matplotlib."""
