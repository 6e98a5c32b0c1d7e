package lab

import (
	"os"
	"strconv"
	"syscall"
)

const (
	// physics is the priority of wires, routers and NAT boxes: they must not show delays that come from a busy machine.
	physics = -20
	// running is that of programs on nodes: before what else the machine does, behind the network that they are on.
	// Without the privilege all stays as it is.
	running = -10
)

// prioritise gives this process and all that it starts a priority; it leads its session.
func prioritise(nice int) {
	_ = syscall.Setpriority(syscall.PRIO_PGRP, 0, nice)
	favour("self", nice)
}

// prioritiseChild does the same for the session that a process leads which has just been started.
func prioritiseChild(pid, nice int) {
	_ = syscall.Setpriority(syscall.PRIO_PGRP, pid, nice)
	favour(strconv.Itoa(pid), nice)
}

// favour prefers a session to others. Where the kernel shares the processors among sessions first (the autogroups of
// sched(7)), the value of a process counts within its session only.
func favour(process string, nice int) {
	_ = os.WriteFile("/proc/"+process+"/autogroup", strconv.AppendInt(nil, int64(nice), 10), 0) // no such file: no autogroups
}
