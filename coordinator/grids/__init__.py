"""Flower's ``Grid``: how messages reach the sites."""
