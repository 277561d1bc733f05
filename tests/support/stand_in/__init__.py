"""Packages that stand in for ones that are not installed; copied into environments of their own."""
