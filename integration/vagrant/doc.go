// Package vagrant stands in for a lab of namespaces: its nodes are the machines that `vagrant up` has started, so that the
// demo runs on them as it is. It speaks to them by ssh, with a copy of this program in each, and to libvirt or VirtualBox
// for what only they can do, which is to unplug a cable.
//
// The scripts beside it make a site or a router of a Debian; Vagrantfile runs them.
package vagrant
