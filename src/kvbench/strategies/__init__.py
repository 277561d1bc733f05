"""The methods and their parts."""
