// Package netns tests Guywire from end to end: real meshd and meshctl
// processes, on the real kernel, in the namespaces of a lab.
//
// It promises that bad input ends with one sentence, the documented exit code
// and nothing left behind; that joining, leaving, restarting and dying do to
// the kernel what they should and no more; that what others break in the
// kernel is repaired, and what is theirs is never touched.
//
// The test binary is also the program that looks at the kernel inside the
// nodes, so that neither iproute2 nor nft is needed. Tests skip only where the
// machine lets nobody make namespaces or open /dev/net/tun.
package netns
