"""Arguments of every command; light imports only, so that help and completion are quick."""
