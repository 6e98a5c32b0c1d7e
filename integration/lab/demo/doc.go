// Package demo is `meshlab demo`: six sites on a small internet join, talk and break, and the traffic says what it felt.
//
// What is promised of package world holds. Options.Keep leaves the lab, which `meshlab down` ends. A failure leaves the logs
// in Options.LogDir. A promise that a machine misses is shown and is no failure, unless by a wide margin.
package demo
