"""The hardware and the clock: instances, devices and links that carry out commands in virtual time."""
