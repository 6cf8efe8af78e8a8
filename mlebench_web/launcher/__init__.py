"""What `./run` does, in the order in which it happens.

bootstrap    finds nothing installed: makes the virtual environments (standard library only)
__main__     reads the command line
environment  the data folder, the address, and the variables that every part gets
prepare      database, static files, catalog: one child process with Django
parts        the processes: broker, web, worker, host service, control
supervisor   starts them, restarts what dies, stops all
demo         `./run demo`: the main job without a hand on the mouse
doctor       what is missing on this machine, and how to get it
"""
