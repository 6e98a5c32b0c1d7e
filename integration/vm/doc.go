// Command vm boots Debian kernels in QEMU and runs in them the tests that
// touch the kernel, with the kernel's own WireGuard under the mesh:
// `make test-vm`.
//
// Kernel images are Debian packages, unpacked below out/vm; nothing of them is
// installed. The machine has no disk: all that it needs is in its initial RAM
// file system, an archive in cpio's newc format with this program as init, the
// kernel modules decompressed and in the order in which they load, static test
// binaries with their testdata, and the programs of the project. Inside, this
// program is also `go`: tests that build meshd find it built.
//
// The first serial port is the kernel's console and goes to a file. The second
// carries what the tests print, which is shown as go test shows it, and ends
// with their exit status. QEMU uses KVM if a machine comes up with it, and
// otherwise emulates, with clocks that count instructions. The machines of all
// kernels run side by side.
//
// suite.go lists what runs. A test of this package holds it complete: a
// package whose tests speak netlink is in it or has a reason not to be.
package main
