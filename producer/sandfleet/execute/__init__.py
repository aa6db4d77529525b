"""The seed's ``Backend.Execute`` over the fleet."""
