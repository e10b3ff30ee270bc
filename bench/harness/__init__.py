"""How it is timed: clocks, memory, the machine, results and the tables made of them."""
