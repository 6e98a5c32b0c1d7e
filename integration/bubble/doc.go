// Package bubble runs a whole control plane, voters and followers with real
// TLS, logs, caches and files, over a network in memory and on the clock of
// testing/synctest: minutes of partitions and restarts in seconds.
package bubble
