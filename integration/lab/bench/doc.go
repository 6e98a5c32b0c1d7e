// Package bench is `meshlab bench`: it measures real processes on networks of package lab and prints each figure with its
// target beside it, and ratios against other systems in the same run. A figure that misses its target is printed as such and
// is no error: machines differ.
package bench
