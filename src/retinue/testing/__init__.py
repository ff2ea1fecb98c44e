"""What a test of an application on Retinue needs; nothing in the runtime imports it.

``servers``  real servers, private to the test that starts them
"""
