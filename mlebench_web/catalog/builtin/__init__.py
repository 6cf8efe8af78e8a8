"""What ships with the product: competitions, agents, container configs, the agents' base image.

The code in here runs elsewhere (grader children, containers) and imports no Django.
"""
