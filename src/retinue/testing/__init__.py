"""What a test of an application on Retinue needs; nothing in the runtime imports it.

``servers``   real servers, private to the test that starts them
``peers``     Trace and MemAgent, as servers that do what a test tells them
``agent``     a process that misbehaves as its command line says
"""
