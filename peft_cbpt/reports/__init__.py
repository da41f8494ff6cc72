"""Pictures and tables that show what purification did."""
