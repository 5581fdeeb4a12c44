"""The outside world on one machine: embedded stores, the suite's processes, replay of real traffic."""
