// Package peers runs routing systems side by side on one network of a lab, each on WireGuard tunnels of the same kind:
// Guywire, FRR's OSPF with and without BFD, BIRD's OSPF with BFD, and babeld. Their daemons are processes of the lab, with
// settings and run-time files that only the node sees; they end with the lab.
package peers
