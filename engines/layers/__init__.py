"""The layers of an engine as they ran: what they are, what they cost, what they could cost."""
