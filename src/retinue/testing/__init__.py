"""What a test of an application on Retinue needs; nothing in the runtime imports it.

``servers``   real servers, private to the test that starts them
``peers``     Trace and MemAgent, as servers that do what a test tells them
``model_server``  a model behind four APIs that answers as the prompt says (``script``)
``coding_agent``  a coding CLI that does what the prompt says, in each CLI's protocol
``agent``     a process that misbehaves as its command line says
"""
