"""What is changed in the network itself."""
