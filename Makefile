# Thin names for people who type `make`; ./run does the work.
.PHONY: up demo test check

up:
	./run

demo:
	./run demo

test:
	./run test

check:
	./run check
